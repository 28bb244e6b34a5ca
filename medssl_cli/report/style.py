"""The style sheet of the HTML page: light, dark and printed, without anything from outside."""

from typing import Final

STYLE: Final = """
:root {
  color-scheme: light dark;
  --page: #f6f8fa; --card: #ffffff; --ink: #1f2328; --quiet: #59636e; --line: #d1d9e0; --accent: #0969da;
  --info: #0969da; --good: #1a7f37; --warning: #9a6700; --bad: #cf222e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0d1117; --card: #161b22; --ink: #e6edf3; --quiet: #9198a1; --line: #30363d; --accent: #4493f8;
    --info: #4493f8; --good: #3fb950; --warning: #d29922; --bad: #f85149;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.5rem 1.5rem 5rem; max-width: 76rem; background: var(--page); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
}
header { border-bottom: 1px solid var(--line); margin-bottom: 2rem; padding-bottom: 1.25rem; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -0.02em; margin: 0; }
h2 { font-size: 1.4rem; line-height: 1.3; letter-spacing: -0.01em; margin: 3rem 0 0.75rem; scroll-margin-top: 1rem; }
p { margin: 0.6rem 0; max-width: 46rem; overflow-wrap: break-word; }
.subtitle { color: var(--quiet); margin: 0.5rem 0 0; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.4rem 1.4rem; list-style: none; margin: 1rem 0 0; padding: 0; }
a { color: var(--accent); text-decoration: none; }
a:hover, a:focus-visible { text-decoration: underline; }
.notice {
  border: 1px solid var(--line); border-left: 4px solid var(--tone); border-radius: 6px; background: var(--card);
  padding: 0.8rem 1.1rem; margin: 1.25rem 0; max-width: 52rem;
}
.notice strong { color: var(--tone); }
.notice p { margin: 0.1rem 0 0; }
.info { --tone: var(--info); }
.good { --tone: var(--good); }
.warning { --tone: var(--warning); }
.bad { --tone: var(--bad); }
.scroll {
  overflow-x: auto; margin: 1.25rem 0; border: 1px solid var(--line); border-radius: 8px; background: var(--card);
  width: fit-content; max-width: 100%;
}
table { border-collapse: collapse; font-size: 0.925rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 0.75rem 1rem; color: var(--quiet); }
th, td { padding: 0.5rem 1rem; text-align: left; border-top: 1px solid var(--line); vertical-align: baseline; }
thead th { font-weight: 600; color: var(--quiet); white-space: nowrap; }
table > thead:first-child th { border-top: 0; }
tbody tr:hover { background: color-mix(in srgb, var(--line) 25%, transparent); }
.number { text-align: right; white-space: nowrap; }
.interval { color: var(--quiet); font-size: 0.85em; font-weight: 400; margin-left: 0.6em; }
.interval:empty { margin: 0; }
.missing { color: var(--quiet); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 1rem 2rem; margin: 1.25rem 0; }
dt { color: var(--quiet); font-size: 0.85rem; }
dd { margin: 0; overflow-wrap: anywhere; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 0.9em; }
p code, td code, figcaption code, dd code {
  background: color-mix(in srgb, var(--line) 45%, transparent); padding: 0.1em 0.35em; border-radius: 4px;
  -webkit-box-decoration-break: clone; box-decoration-break: clone;
}
pre {
  background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem 1.2rem;
  margin: 0.5rem 0 1.25rem; overflow-x: auto; line-height: 1.5;
}
.label { color: var(--quiet); font-size: 0.9rem; margin: 1.25rem 0 0; }
.grid { display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); gap: 1.25rem; margin: 1.25rem 0; }
.columns-1 { --columns: 1; }
.columns-2 { --columns: 2; }
.columns-3 { --columns: 3; }
.columns-4 { --columns: 4; }
@media (max-width: 60rem) { .columns-3, .columns-4 { --columns: 2; } }
@media (max-width: 42rem) { .columns-2, .columns-3, .columns-4 { --columns: 1; } }
figure {
  margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; overflow: hidden;
  display: flex; flex-direction: column; width: fit-content; max-width: 100%; break-inside: avoid;
}
.columns-2 > figure, .columns-3 > figure, .columns-4 > figure { width: auto; }
figure img { display: block; max-width: 100%; height: auto; margin: auto; }
figure:has(img) { background: #0d1117; }
figure svg { display: block; max-width: 100%; height: auto; margin: 1rem auto; padding: 0 1rem; }
figcaption {
  padding: 0.65rem 1rem; color: var(--quiet); font-size: 0.9rem; background: var(--card); margin-top: auto;
  border-top: 1px solid var(--line);
}
.viewer {
  border: 1px solid var(--line); border-radius: 8px; background: var(--card); padding: 12px; margin: 1.25rem 0;
  font-size: 0.9rem; color: var(--quiet);
}
.viewer .controls, .viewer .legend { display: flex; flex-wrap: wrap; gap: 0.5rem 1.25rem; align-items: center; }
.viewer label { display: inline-flex; gap: 0.45rem; align-items: center; color: var(--ink); }
.viewer select { font: inherit; color: var(--ink); background: var(--page); max-width: 20rem; }
.viewer .controls input[type="range"] { width: 7rem; accent-color: var(--accent); }
.viewer .planes {
  display: flex; flex-wrap: wrap; gap: 12px; justify-content: center; background: #0d1117; margin: 12px -12px;
  padding: 12px; color: #9198a1;
}
.viewer .planes > div { display: flex; flex-direction: column; gap: 0.3rem; align-items: center; }
.viewer .planes > div[hidden] { display: none; }
.viewer .planes input { width: 100%; accent-color: #4493f8; }
.viewer canvas { display: block; cursor: crosshair; touch-action: none; }
.viewer canvas:focus-visible { outline: 2px solid #4493f8; outline-offset: 1px; }
.viewer .controls label[hidden] { display: none; }
.viewer .notes { margin: 0.75rem 0 0; padding-left: 1.25rem; }
.viewer .notes:empty { display: none; }
.viewer i { width: 0.9rem; height: 0.9rem; border-radius: 3px; }
@media print {
  .viewer { display: none; }
  :root {
    color-scheme: light;
    --page: #ffffff; --card: #ffffff; --ink: #000000; --quiet: #444444; --line: #bbbbbb; --accent: #000000;
    --info: #0969da; --good: #1a7f37; --warning: #9a6700; --bad: #cf222e;
  }
  body { max-width: none; padding: 0; font-size: 11pt; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  nav { display: none; }
  h2 { break-after: avoid; }
  .scroll, pre { overflow: visible; }
  pre { white-space: pre-wrap; }
  tr, .notice { break-inside: avoid; }
}
"""
