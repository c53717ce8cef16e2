"use strict";
// Fills the page that compares two rows; which two is in the address: ?at=BOARD at SPARSITY&a=METHOD&b=METHOD.
(() => {
  const groups = JSON.parse(document.getElementById("Groups").textContent);
  const form = document.getElementById("Choose");
  const shown = document.getElementById("Compared");
  const { at, a, b } = form.elements;

  const points = (rate) => `${rate < 0 ? "" : "+"}${(100 * rate).toFixed(1).replace(/^-(0\.0)$/, "+$1")}`;
  const cell = (text, tag = "td") => Object.assign(document.createElement(tag), { textContent: text });
  function row(head, ...texts) {
    const made = document.createElement("tr");
    made.append(Object.assign(cell(head, "th"), { scope: "row" }), ...texts.map((text) => cell(text)));
    return made;
  }
  function options(select, names, wanted) {
    select.replaceChildren(...names.map((name, i) => new Option(name, i)));
    select.value = Math.max(0, names.indexOf(wanted));
  }

  // The board's own test of the two, in either direction; without one the difference has no verdict.
  function told(group, ours, theirs) {
    const [first, second] = [group.rows[ours].name, group.rows[theirs].name];
    for (const [x, y, gap, low, high, verdict, p] of group.tests) {
      if (gap === null || low === null) continue;
      const turned = x === theirs && y === ours;
      if (!turned && !(x === ours && y === theirs)) continue;
      const [mean, from, to] = turned ? [-gap, -high, -low] : [gap, low, high];
      const word = turned ? verdict.replace(/better|worse/, (said) => (said === "better" ? "worse" : "better")) : verdict;
      return `${first} minus ${second}: ${points(mean)} [${points(from)}, ${points(to)}] points of robust accuracy; ${word} (p = ${p.toFixed(3)}, Holm).`;
    }
    return `${first} minus ${second}: the board does not test this pair.`;
  }

  function compare() {
    const group = groups[at.value];
    const [ours, theirs] = [group.rows[a.value], group.rows[b.value]];
    shown.querySelector(".verdict").textContent = ours === theirs ? "Choose two different methods." : told(group, Number(a.value), Number(b.value));
    const [facts, seeds] = shown.querySelectorAll("table");
    for (const table of [facts, seeds]) {
      for (const [i, each] of [ours, theirs].entries()) {
        const link = Object.assign(document.createElement("a"), { href: each.href, textContent: each.name });
        table.tHead.rows[0].cells[i + 1].replaceChildren(link);
      }
    }
    const filled = group.titles.map((title, i) => [title, ours.facts[i], theirs.facts[i]]).filter(([, one, other]) => one || other);
    facts.tBodies[0].replaceChildren(...filled.map((texts) => row(...texts)));
    const common = ours.seeds.filter((seed) => theirs.seeds.includes(seed));
    seeds.tBodies[0].replaceChildren(...common.map((seed) => {
      const [one, other] = [ours, theirs].map((each) => each.robust[each.seeds.indexOf(seed)]);
      return row(String(seed), `${one} of ${group.n}`, `${other} of ${group.n}`, points((one - other) / group.n));
    }));
    const asked = new URLSearchParams({ at: group.name, a: ours.name, b: theirs.name });
    history.replaceState(null, "", `?${asked}`);
  }

  function choose(one, other) {
    const names = groups[at.value].rows.map((each) => each.name);
    options(a, names, one);
    options(b, names, names.includes(other) ? other : "magnitude");
    if (a.value === b.value) b.value = a.value === "0" ? 1 : 0;
    compare();
  }

  if (!groups.length) return;
  const asked = new URLSearchParams(location.search);
  options(at, groups.map((group) => group.name), asked.get("at"));
  choose(asked.get("a"), asked.get("b"));
  at.addEventListener("change", () => choose(a.selectedOptions[0]?.text, b.selectedOptions[0]?.text));
  for (const select of [a, b]) select.addEventListener("change", compare);
  form.hidden = shown.hidden = false;
})();
