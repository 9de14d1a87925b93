rule report:
    input:
        MANIFEST,
        "models/vlm.json",
        "data/splits/counts.csv",
        "data/splits/val_generalized.json",
        expand("metrics/{run}.json", run=RUNS),
        expand("runs/{run}/{file}", run=RUNS, file=TABLES_OF_RUN),
        expand("runs/{setting}/{file}", setting=SETTINGS, file=["model.json", "README.md"]),
        code=[
            "fvlm/stages/report.py",
            "fvlm/ablations.py",
            "fvlm/data/coco.py",
            "fvlm/data/coco_categories.json",
            "fvlm/data/dataset.py",
            "fvlm/data/order.py",
            "fvlm/data/transforms.py",
            "fvlm/evaluation/ap.py",
            "fvlm/evaluation/curves.py",
            "fvlm/evaluation/errors.py",
            "fvlm/evaluation/hits.py",
            "fvlm/report/ablations.py",
            "fvlm/report/gallery.py",
            "fvlm/report/page.css",
            "fvlm/report/page.html.j2",
            "fvlm/report/page.js",
            "fvlm/report/page.py",
            "fvlm/report/pictures.py",
            "fvlm/report/plots.py",
            "fvlm/report/published.csv",
            "fvlm/report/published.py",
            "fvlm/report/sections.html.j2",
            "fvlm/report/tables.py",
        ],
    output:
        "metrics.json",
        report(
            "reports/index.html",
            caption="../report/index.rst",
            category="Report",
            labels={"shows": "everything on one page"},
        ),
        report(
            "reports/comparison.csv",
            caption="../report/comparison.rst",
            category="Comparison of the settings",
            labels={"shows": "table (CSV)"},
        ),
        report(
            "reports/comparison.md",
            caption="../report/comparison.rst",
            category="Comparison of the settings",
            labels={"shows": "table (Markdown)"},
        ),
        report(
            "reports/comparison.tex",
            caption="../report/comparison.rst",
            category="Comparison of the settings",
            labels={"shows": "table (LaTeX)"},
        ),
        report(
            "reports/losses.png",
            caption="../report/losses.rst",
            category="Training",
            labels={"setting": "all", "shows": "losses on one axis"},
        ),
        report(
            "reports/fusion_sweep.png",
            caption="../report/fusion_sweep.rst",
            category="Scores",
            labels={"setting": "all", "shows": "alpha and beta tried"},
        ),
        report(
            "reports/per_class.png",
            caption="../report/per_class.rst",
            category="Scores",
            labels={"setting": "all", "shows": "AP by class"},
        ),
        report(
            "reports/precision_recall.png",
            caption="../report/precision_recall.rst",
            category="Scores",
            labels={"setting": "all", "shows": "precision and recall"},
        ),
        report(
            "reports/errors.png",
            caption="../report/errors.rst",
            category="Scores",
            labels={"setting": "all", "shows": "errors by kind"},
        ),
        report(
            "reports/detections.png",
            caption="../report/detections.rst",
            category="Detections",
            labels={"shows": "validation pictures"},
        ),
    log:
        "logs/report.log",
    localrule: True
    conda:
        "../envs/fvlm.yaml"
    params:
        sections=sections("settings", "seeds", "evaluate", "report"),
        ablations=shown_ablations(),
    shell:
        "python -m fvlm report > {log} 2>&1"
