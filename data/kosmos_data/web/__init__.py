"""From web pages to interleaved documents, and the images that the pages name.

In the order in which a page passes through them:

    warc                             records of a crawl
    html/                            bytes to text (encoding), the walk over a page (extract, html_reader), what is no
                                     text (html_rules), addresses of images (html_images)
    page, draft                      a page as it was extracted; as the filters look at and shorten it
    rules, options                   every threshold with its source; the settings of ``kosmos data web``
    filters, text_quality, held_out  what one page tells
    minhash, selection, hamming      what only the whole corpus tells: duplicates, near hashes, five images a page
    ledger, selection_ledger         what every rule dropped, with examples; ledger_report shows it
    pipeline, stages, executors      the run: its stages, their steps, what runs them
    sources, work_folder             where pages and image bytes come from; what stages hand to each other
    http/                            images by address, and what became of each (fetch, fetch_table); what servers ask
                                     for (polite_http, robots); where a request may go at all (safe_http)
"""
