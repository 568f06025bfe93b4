from snakemake.utils import min_version

min_version("9.0")

# A second configuration file is merged into the first, so the default is loaded only on its own.
if not workflow.configfiles:

    configfile: "config/quick.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/sample.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


localrules:
    all,


rule all:
    default_target: True
    input:
        f"{ROOT}/metrics.csv",
        expand(f"{ROOT}/{{table}}.md", table=EXPERIMENT.tables),


# Everything measured on one dataset: `snakemake digits`.
for dataset in EXPERIMENT.datasets:

    rule:
        name:
            dataset
        input:
            all_records([dataset]),
        localrule: True
