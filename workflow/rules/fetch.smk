# The only jobs that touch the network. They have no output, so that nothing but their name runs
# them: `snakemake fetch_cifar10`. A missing file of a dataset never starts a download.
for source in ["cifar10", "cifar100", "svhn"]:

    rule:
        name:
            f"fetch_{source}"
        log:
            f"{LOGS}/fetch_{source}.log",
        benchmark:
            f"{LOGS}/fetch_{source}.tsv"
        localrule: True
        conda:
            "../../environment.yml"
        params:
            source=source,
        shell:
            "python -P -m qcsbm fetch {params.source:q} 2> {log:q}"
