"""Clients that nobody here wrote the libraries of: js-libp2p and go-libp2p against orchd's own nodes.

`js/` is a client in JavaScript, `plain.py` one in Python behind the go daemon `p2pd`, both written from the pages in
docs/ alone: whoever reads those pages can do the same. Node 22, js-libp2p and p2pd are fetched by `make interop`, which
runs these tests then; where they are missing, the tests are skipped and say so.
"""
