"""Where work runs: here, or in processes of Ray's."""
