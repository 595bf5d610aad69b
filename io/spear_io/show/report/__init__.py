"""One self-contained page about an inversion: what was shared, what was recovered, how sure that is, what is missing.

`gather` turns files into plain data, `pictures` and `plots` draw, `words` says figures in sentences, `page` fills the templates.
"""
