"""A corpus of texts or pairs → the same without duplicates, other languages, held-out texts and unwanted sources.

options            the settings of ``kosmos data clean``
source             what is cleaned: shards, or what ``kosmos data import`` reads; the job of a run
filters            what one document tells: source, tags in captions, language, broken pictures, held-out data
manifest           the numbers of a document that the choice among duplicates needs
selection          exact and near-duplicates, and which of them stays
stages, pipeline   the run, on the executors, minhash, ledger and shard writer of ``kosmos_data.web``
left_out           the lines of ``left_out.jsonl``: key and reason of every document that is not in the result
"""
