"""Pages of participants and of the group: figures, tables, the text of the methods, and HTML.

A page is made from what lies in the derivatives folder, after the graph has ended, and not by a
node of the graph: Nipype runs no node whose parents failed, and a participant of whom a step
failed needs the page most.
"""
