"""Speed: everything here can be taken away, and the rest gives the same, slower."""
