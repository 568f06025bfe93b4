# The paper's motivational examples; no dataset enters.
rule figure1:
    output:
        md=f"{ROOT}/tables/figure1.md",
        csv=f"{ROOT}/tables/figure1.csv",
        html=report(
            f"{ROOT}/tables/figure1.html",
            caption="../report/figure1.rst",
            category="Motivational examples",
            labels={"example": "Figure 1", "as": "table"},
        ),
        starts=f"{ROOT}/tables/figure1_starts.csv",
        png=report(
            f"{ROOT}/figures/figure1.png",
            caption="../report/figure1.rst",
            category="Motivational examples",
            labels={"example": "Figure 1", "as": "picture"},
        ),
        svg=f"{ROOT}/figures/figure1.svg",
    log:
        f"{LOGS}/figure1.log",
    benchmark:
        f"{LOGS}/figure1.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=spec("figure1"),
        table=subpath(output.md, strip_suffix=".md"),
        figure=subpath(output.png, strip_suffix=".png"),
    shell:
        "python -P -m qcsbm figure1 --spec {params.spec:q} --table {params.table:q}"
        " --starts {output.starts:q} --figure {params.figure:q} 2> {log:q}"


rule figure4:
    output:
        md=f"{ROOT}/tables/figure4.md",
        csv=f"{ROOT}/tables/figure4.csv",
        html=report(
            f"{ROOT}/tables/figure4.html",
            caption="../report/figure4.rst",
            category="Motivational examples",
            labels={"example": "Figure 4", "as": "table"},
        ),
        png=report(
            f"{ROOT}/figures/figure4.png",
            caption="../report/figure4.rst",
            category="Motivational examples",
            labels={"example": "Figure 4", "as": "picture"},
        ),
        svg=f"{ROOT}/figures/figure4.svg",
    log:
        f"{LOGS}/figure4.log",
    benchmark:
        f"{LOGS}/figure4.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=spec("figure4"),
        table=subpath(output.md, strip_suffix=".md"),
        figure=subpath(output.png, strip_suffix=".png"),
    shell:
        "python -P -m qcsbm figure4 --spec {params.spec:q} --table {params.table:q}"
        " --figure {params.figure:q} 2> {log:q}"
