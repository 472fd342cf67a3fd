"""The report: runs or dual CoTs as one HTML page that needs no other file and no network.

`items` and `summary` make the data of the page from runs and training histories, and `page` puts them into
the template. The page consists of `template.html`, `page.css` and the scripts in `SCRIPTS`, which build all
elements and show data as text only.
"""

from edit_trl.evaluation.report.page import pairs_page, report_page, write_pairs, write_report

__all__ = ["pairs_page", "report_page", "write_pairs", "write_report"]
