"""People compare two models' texts blind: the texts (``texts``), the page (``page``, ``server``), what was judged
(``judgements``), and who won (``report``, ``agreement``). ``command`` is ``kosmos eval rate``."""
