"""From web pages to interleaved documents, and the images that the pages name.

In the order in which a page passes through them:

    warc, encoding                   records of a crawl; bytes to text
    html, html_reader                the walk over a page, with html_rules (what is no text) and html_images (addresses)
    page, draft                      a page as it was extracted; as the filters look at and shorten it
    rules, options                   every threshold with its source; the settings of ``kosmos data web``
    filters, text_quality, held_out  what one page tells
    selection, hamming               what only the whole corpus tells: duplicates, near hashes, five images a page
    ledger, selection_ledger         what every rule dropped, with examples; report shows it
    pipeline, stages, engine         the run: its stages, their steps, the executors
    sources, work_folder             where pages and image bytes come from; what stages hand to each other
    fetch, fetch_table               images by address, and what became of each
    polite_http, robots, safe_http   what servers ask for; where a request may go at all
"""
