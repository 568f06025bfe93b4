rule gather_records:
    input:
        all_records(EXPERIMENT.datasets),
    output:
        f"{ROOT}/metrics.csv",
    log:
        f"{LOGS}/gather_records.log",
    benchmark:
        f"{LOGS}/gather_records.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        spec=spec("gather_records"),
    shell:
        "python -P -m qcsbm gather_records --spec {params.spec:q} --records {input:q} --out {output:q} 2> {log:q}"


rule table:
    input:
        table_records,
    output:
        multiext(f"{ROOT}/{{table}}", ".md", ".csv", ".tex"),
        html=report(
            f"{ROOT}/{{table}}.html",
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
    log:
        f"{LOGS}/{{table}}.log",
    benchmark:
        f"{LOGS}/{{table}}.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        spec=spec("table", "table"),
        stem=subpath(output[0], strip_suffix=".md"),
    shell:
        "python -P -m qcsbm table --spec {params.spec:q} --records {input:q} --out {params.stem:q}"
        " 2> {log:q}"


rule cost:
    input:
        cost_records,
    output:
        multiext(f"{ROOT}/tables/cost", ".md", ".csv"),
        html=report(
            f"{ROOT}/tables/cost.html",
            caption="../report/cost.rst",
            category="Tables",
            labels={"table": "cost"},
        ),
    log:
        f"{LOGS}/cost.log",
    benchmark:
        f"{LOGS}/cost.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        spec=spec("cost"),
        table=subpath(output[0], strip_suffix=".md"),
    shell:
        "python -P -m qcsbm cost --spec {params.spec:q} --records {input:q} --table {params.table:q}"
        " 2> {log:q}"
