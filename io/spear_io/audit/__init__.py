"""The same update under defences: how strong each would have had to be, and what it does not protect.

`run` goes from a dump to a `result`: `update` takes one update into memory, `possible` chooses among the `defences` (with a `network`
that `replay` plays the client's step on), `sweep` inverts what they leave, `privacy` says what noise is worth as differential privacy.
`words` says it in sentences; `document`, `page` and `tables` show it.
"""
