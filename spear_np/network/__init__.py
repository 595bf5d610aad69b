"""A chain of layers as the loop sees it: rounds of search, what is known, the certificate, what is handed out."""
