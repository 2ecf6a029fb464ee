"""The paper's comparison with our own code: prompts, factored prompts and their rivals, searched and tested alike.

plan        what is compared: configurations, suites, hyperparameters
recipes     the recipes that the paper's authors released, by backbone and dataset
tasks       a dataset in an archive or a folder, cut to size
baselines   full fine-tuning, GateVPT, LoRA, SSF: trained here, never served
records     what has been run, a line each, so that a stopped comparison goes on
runner      search on the validation split, then test with other seeds
drawing     curves and histograms as SVG
report      docs/benchmarks/paper.md from the records
"""
