"""Leaderboard: records in, tables out. Reads records alone and imports no torch, so that it builds on a laptop.

table     records -> rows (checkpoints) and columns (task, metric, dataset, protocol), the best and what is tied with it
markdown, latex, export (CSV, JSON, Parquet), page (one self-contained HTML file), text    a table -> a file
escape    text of unknown origin -> text that is safe in each of these formats
samples, ties    per-sample outcomes of two records in line; is a score tied with the best
compare, seeds   two or more checkpoints, or recipes of several seeds, sample by sample: paired intervals and tests
published, paper_plan, paper, paper_text   the BITS paper's tables: published numbers, and beside them what was measured
curves, figures  curves beside records and in logs of training; as drawings
`python -m evaluate.leaderboard` writes all files and prints the table; `python -m evaluate.compare` compares.
"""
