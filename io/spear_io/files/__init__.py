"""The two HDF5 layouts, and the safe reading and writing of files."""
