"""A checkpoint as a file for other programs: command.py is the whole job, graph.py what is exported, the others its forms."""
