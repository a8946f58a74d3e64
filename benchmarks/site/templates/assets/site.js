"use strict";
// Filter and search of the overview. The state lives in the address, so that a view can be linked; without this script
// every paper is shown.
(() => {
  const form = document.getElementById("filter");
  if (!form) return;
  const count = document.getElementById("count");
  const plain = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
  const papers = [...document.querySelectorAll("#papers > li")].map((item) => ({
    item,
    text: plain(`${item.textContent} ${item.dataset.text} ${[...item.querySelectorAll("[title]")].map((e) => e.title)}`),
  }));
  const chosen = ["modality", "year", "verdict"];

  function apply() {
    const words = plain(form.elements.q.value).split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const { item, text } of papers) {
      const fits = chosen.every((name) => {
        const value = form.elements[name].value;
        return !value || item.dataset[name].split("|").includes(value);
      });
      item.hidden = !(fits && words.every((word) => text.includes(word)));
      shown += !item.hidden;
    }
    count.textContent = shown === papers.length ? `${shown} papers` : `${shown} of ${papers.length} papers`;
  }

  function remember() {
    const state = new URLSearchParams();
    for (const name of ["q", ...chosen]) {
      if (form.elements[name].value) state.set(name, form.elements[name].value);
    }
    const hash = state.toString();
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  }

  function recall() {
    if (location.hash && !location.hash.includes("=")) return; // an anchor of the page
    const state = new URLSearchParams(location.hash.slice(1));
    for (const name of ["q", ...chosen]) {
      form.elements[name].value = state.get(name) ?? "";
      if (form.elements[name].selectedIndex === -1) form.elements[name].value = "";
    }
    apply();
  }

  form.addEventListener("input", () => { apply(); remember(); });
  form.addEventListener("reset", () => setTimeout(() => { apply(); remember(); }));
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", recall);
  form.hidden = false;
  recall();
})();
