"""The same update under defences: how strong each would have had to be, and what it does not protect.

`update` takes one update into memory, `defences` change it, `sweep` inverts what is left, `privacy` says what noise is worth as
differential privacy, `document` makes plain data of it, for JSON and for a page.
"""
