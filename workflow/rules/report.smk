rule metrics:
    input:
        all_records(EXPERIMENT.datasets),
    output:
        f"{ROOT}/metrics.csv",
    log:
        f"{LOGS}/metrics.log",
    benchmark:
        f"{LOGS}/metrics.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=spec("metrics"),
    shell:
        "python -m qcsbm metrics --spec {params.spec:q} --records {input:q} --out {output:q} 2> {log:q}"


rule table:
    input:
        table_records,
    output:
        multiext(f"{ROOT}/{{table}}", ".md", ".csv", ".tex"),
    log:
        f"{LOGS}/{{table}}.log",
    benchmark:
        f"{LOGS}/{{table}}.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=spec("table", "table"),
        stem=lambda wildcards: f"{ROOT}/{wildcards.table}",
    shell:
        "python -m qcsbm table --spec {params.spec:q} --records {input:q} --out {params.stem:q}"
        " 2> {log:q}"
