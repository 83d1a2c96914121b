"""What builds the documentation site beside MkDocs; `make docs` runs it, and the library never imports it."""
