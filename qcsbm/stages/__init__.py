"""One module per stage of the workflow: files in, files and one JSON record out.

Each has ``add_arguments(parser)`` and ``run(arguments)``; ``qcsbm.cli`` calls them. ``arguments``
and ``cells`` hold what several share.
"""
