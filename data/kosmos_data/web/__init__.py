"""From web pages to interleaved documents: WARC → HTML → nodes in order → filters → near-duplicates → shards."""
