"""One module a revision, named by its number; none is changed once it has been released."""
