# The two-dimensional examples: `snakemake toy`.
rule toy_run:
    output:
        field=f"{TOY}/{{toy}}/{{toy_method}}/seed{{seed}}.npz",
        record=f"{TOY}/{{toy}}/{{toy_method}}/seed{{seed}}.json",
    log:
        f"{LOGS}/toy/{{toy}}/{{toy_method}}/seed{{seed}}.log",
    benchmark:
        f"{LOGS}/toy/{{toy}}/{{toy_method}}/seed{{seed}}.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=spec("toy", "toy", "toy_method", "seed"),
    shell:
        "python -P -m qcsbm toy --spec {params.spec:q} --out {output.field:q}"
        " --record {output.record:q} 2> {log:q}"


rule toy_table:
    input:
        expand(
            f"{TOY}/{{toy}}/{{method}}/seed{{seed}}.json",
            toy=specification.TOY_DATASETS,
            method=specification.TOY_METHODS,
            seed=EXPERIMENT.toy.seeds,
        ),
    output:
        md=f"{ROOT}/tables/toy.md",
        csv=f"{ROOT}/tables/toy.csv",
        html=report(
            f"{ROOT}/tables/toy.html",
            caption="../report/toy_table.rst",
            category="Motivational examples",
            labels={"example": "two dimensions", "as": "table"},
        ),
    log:
        f"{LOGS}/toy/table.log",
    benchmark:
        f"{LOGS}/toy/table.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=spec("toy_table"),
        table=subpath(output.md, strip_suffix=".md"),
    shell:
        "python -P -m qcsbm toy_table --spec {params.spec:q} --records {input:q}"
        " --table {params.table:q} 2> {log:q}"


rule toy_figure:
    input:
        expand(
            f"{TOY}/{{toy}}/{{method}}/seed{{seed}}.npz",
            method=specification.TOY_METHODS,
            seed=EXPERIMENT.toy.seeds[0],
            allow_missing=True,
        ),
    output:
        png=report(
            f"{ROOT}/figures/toy/{{toy}}.png",
            caption="../report/toy_figure.rst",
            category="Motivational examples",
            labels={"example": "{toy}", "as": "picture"},
        ),
        svg=f"{ROOT}/figures/toy/{{toy}}.svg",
    log:
        f"{LOGS}/toy/{{toy}}.log",
    benchmark:
        f"{LOGS}/toy/{{toy}}.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=spec("toy_figure", "toy"),
        figure=subpath(output.png, strip_suffix=".png"),
    shell:
        "python -P -m qcsbm toy_figure --spec {params.spec:q} --fields {input:q}"
        " --figure {params.figure:q} 2> {log:q}"


rule toy:
    input:
        rules.toy_table.output.md,
        expand(rules.toy_figure.output.png, toy=specification.TOY_DATASETS),
    localrule: True
