"""The command `spear-np`."""
