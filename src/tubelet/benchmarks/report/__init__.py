"""Reports on runs: one page of HTML, and markdown. `write.write_report` makes both.

- collect.py: runs read, scored and compared query by query;
- breakdown.py, presence.py, calibration.py, cases.py: groups, rejection, confidence, single queries;
- contents.py: all of it as data; page.py, sections.py, page_cases.py, charts.py, style.css lay it out as HTML,
  markdown.py as markdown; markup.py is HTML that is escaped by construction.
"""
