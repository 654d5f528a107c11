"""The Python environment in which workers train, made by orchd itself where its own Python lacks the packages.

`needs` says what is needed and what is there, `maker` is the process that makes it, `environment` is the daemon's side,
`marker` what both keep on the disk. Nothing here imports torch.

**pip and `venv`, not uv.** Both come with every Python, and pip reads what the user has set up for it: a company's
index, proxies, certificates, folders of wheels. uv would have to be fetched first, and reads none of that.

**Layered, not copied.** The environment is a venv of the daemon's own Python, with a `.pth` file that puts the daemon's
packages behind its own. So a worker runs the daemon's very orchd, and only what is missing is downloaded; what both
have (numpy, msgspec) is built for the same interpreter. Where the daemon's Python changes, the next check says so.
"""
