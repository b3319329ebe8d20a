"""One module per command of the command line.  Each imports what it needs when it runs, so that
--help is immediate."""
