rule claims:
    input:
        metrics=rules.gather_records.output,
        training=compared_trainings(),
        figure1=rules.figure1.output.starts,
        figure4=rules.figure4.output.csv,
    output:
        md=f"{ROOT}/claims.md",
        json=f"{ROOT}/claims.json",
        html=report(
            f"{ROOT}/claims.html",
            caption="../report/claims.rst",
            category="Claims",
            labels={"page": "claims"},
        ),
    log:
        f"{LOGS}/claims.log",
    benchmark:
        f"{LOGS}/claims.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        spec=spec("claims"),
        training=lambda wildcards, input: (
            ["--training", *input.training] if input.training else []
        ),
        stem=subpath(output.md, strip_suffix=".md"),
    shell:
        "python -P -m qcsbm claims --spec {params.spec:q} --metrics {input.metrics:q}"
        " {params.training:q}"
        " --figure1 {input.figure1:q} --figure4 {input.figure4:q} --out {params.stem:q} 2> {log:q}"
