"""The style sheet of report.html: light and dark, wide and narrow, and the colours of tokens."""

from lmpg.runs.report.token_colours import VIEWS

STYLE = """
:root { color-scheme: light dark; --back: #fbfbfa; --card: #fff; --text: #1d1f23; --muted: #62676f;
  --line: #e4e5e7; --c1: #2b62c4; --c2: #d1661c; --c3: #23875b; --c4: #9a3f9c; --c5: #8a6d1a;
  --good: #1f7a4d; --warn: #b3541e; --more: 43 110 214; --less: 224 108 22; }
@media (prefers-color-scheme: dark) { :root { --back: #15171a; --card: #1d2024; --text: #e7e8ea;
  --muted: #989da6; --line: #32363c; --c1: #7aa7f5; --c2: #f0a066; --c3: #6cc79b; --c4: #d490d6;
  --c5: #d9bf6b; --good: #6cc79b; --warn: #f0a066; --more: 74 136 240; --less: 226 122 46; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 32px 20px 64px; }
@media (max-width: 640px) { main { padding: 20px 12px 64px; } }
h1 { font-size: 28px; margin: 0; display: inline-block; letter-spacing: -.01em;
  overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 36px 0 12px; }
h3 { font-size: 14px; margin: 0 0 8px; color: var(--muted); font-weight: 600; }
.status { margin-left: 12px; padding: 2px 10px; border-radius: 999px; font-size: 13px;
  border: 1px solid currentColor; color: var(--warn); vertical-align: 5px; }
.status.finished { color: var(--good); }
.lead, .muted { color: var(--muted); } .lead { margin: 4px 0 20px; }
.warnings { border: 1px solid var(--warn); border-radius: 10px; padding: 10px 14px 10px 32px;
  margin: 0 0 20px; overflow-wrap: anywhere; } .warnings::marker { color: var(--warn); }
.cards { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); }
.card, figure, .sample { background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
.card { padding: 14px 18px; } .card .name { color: var(--muted); font-size: 13px; }
.card .after { font-size: 30px; font-weight: 650; letter-spacing: -.02em; line-height: 1.2; }
.card .before { color: var(--muted); font-size: 20px; }
.grid-of-figures { display: grid; gap: 14px; margin-bottom: 14px;
  grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); }
.grid-of-figures.first { grid-template-columns: repeat(auto-fill, minmax(min(350px, 100%), 1fr)); }
figure { margin: 0; padding: 10px 10px 6px; }
figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 2px 8px;
  padding: 0 4px 4px; font-size: 13px; overflow-wrap: anywhere; }
figcaption span { color: var(--muted); white-space: nowrap; font-variant-numeric: tabular-nums; }
figcaption small { color: var(--muted); font-weight: 400; }
figure p { margin: 2px 4px 4px; font-size: 12.5px; line-height: 1.4; color: var(--muted); }
figure .worry b { color: var(--warn); font-weight: 600; }
svg { width: 100%; height: auto; display: block; }
svg text { font-size: 10px; fill: var(--muted); font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--line); }
polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke: var(--c); }
polyline.raw { stroke-width: 1; opacity: .35; }
circle { fill: var(--c); stroke: var(--card); stroke-width: 1; }
.c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); } .c4 { --c: var(--c4); }
.c5 { --c: var(--c5); } .c6 { --c: #3a8f9e; } .c7 { --c: #c2476a; } .c8 { --c: #7b7f88; }
polygon.band { fill: var(--c); opacity: .16; stroke: none; }
i { display: inline-block; width: 12px; height: 3px; background: var(--c); margin: 0 4px 3px 8px; }
i.dot { width: 7px; height: 7px; border-radius: 50%; margin-bottom: 1px; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--muted); font-weight: 500; font-size: 13px; }
td.num, th.num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.scroll { overflow-x: auto; }
@media (max-width: 640px) { .note { display: none; } th, td { padding-right: 8px; }
  .scroll { font-size: 13.5px; } th.num { white-space: normal; font-size: 12px; }
  td b { overflow-wrap: anywhere; } }
.times td { border: 0; padding: 3px 14px 3px 0; } .times .bar { width: 70%; }
.bar div { background: var(--c1); height: 12px; border-radius: 3px; margin-top: 6px;
  min-width: 2px; }
.steps { display: grid; gap: 24px; } section { min-width: 0; }
.sample { padding: 8px 12px; margin-bottom: 8px; display: flex; gap: 12px; min-width: 0; }
.text { flex: 1; white-space: pre-wrap; overflow-wrap: anywhere; min-width: 0; }
.prompt { color: var(--muted); }
.group { border-left: 3px solid var(--line); padding-left: 12px; margin-bottom: 18px; }
.group > .text { margin-bottom: 8px; } .group > p { margin: 0 0 8px; }
.members { display: grid; gap: 8px;
  grid-template-columns: repeat(auto-fit, minmax(min(240px, 100%), 1fr)); }
.members .sample { margin: 0; }
.scores { display: flex; flex-direction: column; align-items: flex-end; gap: 2px; flex: none;
  max-width: 40%; } .scores small { color: var(--muted); font-size: 11.5px; text-align: right;
  overflow-wrap: anywhere; }
.score { font-variant-numeric: tabular-nums; font-weight: 600; font-size: 13px; height: fit-content;
  padding: 1px 8px; border-radius: 6px; border: 1px solid var(--line); position: relative;
  overflow: hidden; white-space: nowrap; }
.score::before { content: ""; position: absolute; inset: 0; background: var(--c1);
  opacity: var(--share); }
.score b { position: relative; font-weight: inherit; }
.talk { display: grid; gap: 6px; min-width: 0; } .talk details { margin: 0; }
.talk details > * + * { margin-top: 6px; }
.told { color: var(--muted); white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13.5px; }
.lost { color: var(--warn); }
.turn { display: flex; gap: 10px; align-items: baseline; min-width: 0; padding: 2px 0 2px 10px;
  border-left: 3px solid var(--c1); } .turn .text { flex: 0 1 auto; }
.paid { flex: none; font-size: 12.5px; font-weight: 600; font-variant-numeric: tabular-nums;
  color: var(--muted); }
.call { margin-left: 13px; padding: 1px 8px; border-radius: 6px; width: fit-content;
  max-width: 100%; border: 1px solid var(--line); overflow-wrap: anywhere;
  font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
details { margin-top: 14px; } summary { cursor: pointer; color: var(--muted); }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 18px; overflow-x: auto; font-size: 13px; line-height: 1.45; }
.view input { position: absolute; opacity: 0; }
.view label { display: inline-block; padding: 4px 12px; margin: 0 6px 8px 0; font-size: 13px;
  border: 1px solid var(--line); border-radius: 999px; cursor: pointer; background: var(--card); }
.view input:checked + label { background: var(--text); color: var(--back);
  border-color: var(--text); }
.view input:focus-visible + label { outline: 2px solid var(--c1); outline-offset: 2px; }
.legend { display: none; margin: 0 0 14px; font-size: 13px; color: var(--muted); }
.legend t-k { color: var(--text); padding: 1px 6px; }
t-k { --x: 0; border-radius: 3px; padding: 1px 0; -webkit-box-decoration-break: clone;
  box-decoration-break: clone; background-image:
  linear-gradient(rgb(var(--more) / calc(var(--x) * .62)) 0 0),
  linear-gradient(rgb(var(--less) / calc(var(--x) * -.62)) 0 0); }
t-k.end { outline: 1px dashed var(--muted); outline-offset: -1px; padding: 1px 3px;
  margin-left: 2px; font-size: 13px; }
t-k[data-n]:hover { outline: 2px solid var(--text); outline-offset: -1px; }
t-k[data-n]:hover::after { content: attr(data-n); position: fixed; left: 12px; bottom: 12px;
  z-index: 9; max-width: calc(100vw - 24px); padding: 8px 14px; border-radius: 8px;
  background: var(--text); color: var(--back); font-size: 13px; white-space: pre-wrap;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
i-n { color: var(--muted); font-style: italic; }
""" + "".join(
    f"#view-{key}:checked ~ .legends .{key} {{ display: block; }}\n"
    f"#view-{key}:checked ~ .steps t-k[data-n] {{ --x: var(--{key}, 0); }}\n"
    for key in VIEWS
)
