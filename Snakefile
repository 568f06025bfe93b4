from snakemake.utils import min_version

min_version("9.0")

# A second configuration file is merged into the first, so the default is loaded only on its own.
if not workflow.configfiles:

    configfile: "config/quick.yaml"


report: "workflow/report/workflow.rst"


# Jobs that sampling, features, likelihood and asymmetry of one model are split over; results do
# not depend on it: `--set-scatter shards=20`, or the same key in a profile.
scattergather:
    shards=1,


include: "workflow/rules/common.smk"
include: "workflow/rules/fetch.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/sample.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/motivation.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/claims.smk"


if EXPERIMENT.toy:

    include: "workflow/rules/toy.smk"


localrules:
    all,


rule all:
    default_target: True
    input:
        f"{ROOT}/metrics.csv",
        f"{ROOT}/tables/cost.md",
        expand(f"{ROOT}/{{table}}.md", table=EXPERIMENT.tables),
        expand(f"{ROOT}/figures/{{example}}.png", example=["figure1", "figure4"]),
        dataset_figures(EXPERIMENT.datasets),
        f"{ROOT}/claims.md",


# Everything measured on one dataset: `snakemake digits`.
for dataset in EXPERIMENT.datasets:

    rule:
        name:
            dataset
        input:
            all_records([dataset]),
        localrule: True
