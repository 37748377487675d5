"""Ready-made projects: what a problem asks for, and the files of a project of one's own."""
