"""Pages about runs as single HTML files: a report of one, a comparison of several.

html.py escapes, page.py makes the file, charts.py and matrix.py draw; sections.py and settings.py write what a report says;
comparison.py finds what differs between runs, compare.py writes it. Everything is made from a `RunRecord` (record.py): nothing
is read from a disk, and a page asks for nothing from a network.
"""
