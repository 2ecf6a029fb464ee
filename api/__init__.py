"""api talks: the REST interface. It never computes in a request what takes long, and it never imports worker."""
