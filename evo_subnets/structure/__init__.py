"""What a network is made of: channels, wiring, neurons, and networks without some of them."""
