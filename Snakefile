# The workflow is workflow/Snakefile. This file has `snakemake` run it as typed in a checkout, with
# the profile of profiles/default, and `-s` in any other folder.
include: "workflow/Snakefile"


# An included file has no say in what a bare `snakemake` makes.
workflow.default_target = "all"
