"""How the page of a report looks: light and dark, on a phone and on paper."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5c6673; --line: #dde2e8; --paper: #ffffff; --card: #f5f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ed; --soft: #9aa5b1; --line: #343c46; --paper: #14181d; --card: #1d232a; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h1 small { color: var(--soft); font-weight: normal; font-size: 1.2rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem; }
p { margin: .3rem 0 .8rem; }
header p, footer, section > p, .card, figcaption { color: var(--soft); overflow-wrap: anywhere; }
.said { color: var(--ink); }
code, pre { font: .9em/1.4 ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
pre { overflow-x: auto; background: var(--card); padding: 1rem; border-radius: .4rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(11.5rem, 1fr)); gap: .75rem; margin: 1.5rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .4rem; padding: .7rem .9rem;
  font-size: .82rem; }
.card .value { color: var(--ink); font-size: 1.5rem; font-weight: 600; line-height: 1.3; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 1.25rem; }
figure { margin: 0; min-width: 0; }
figure.pair { grid-column: 1 / -1; }
figure.pair svg { max-width: 58rem; }
figure.single svg { max-width: 34rem; }
figure.wide, figure.pair { overflow-x: auto; }
figure.wide svg, figure.pair svg { min-width: 38rem; }
figcaption { font-size: .85rem; margin-bottom: .4rem; }
figcaption code { color: var(--ink); font-size: 1em; font-weight: 600; }
svg { display: block; width: 100%; height: auto; color: var(--ink); }
svg image { image-rendering: pixelated; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif !important; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem 1rem .35rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
tbody th { color: var(--soft); font-weight: normal; white-space: nowrap; }
details { margin-top: 1rem; }
summary { cursor: pointer; }
footer { margin-top: 3rem; font-size: .85rem; }
@media print {
  :root { --ink: #000000; --soft: #444444; --line: #cccccc; --paper: #ffffff; --card: #ffffff; }
  main { max-width: none; padding: 0; }
  .card, figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
  figure.wide svg, figure.pair svg { min-width: 0; }
}
"""
