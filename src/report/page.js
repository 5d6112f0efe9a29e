// Moves the heat map through the run, and hides and shows curves. Without it the page shows the last step and every curve.
(() => {
  "use strict";
  document.documentElement.classList.add("js");

  for (const heat of document.querySelectorAll(".heat")) {
    const data = JSON.parse(heat.querySelector("script").textContent);
    const slider = heat.querySelector("input[type=range]");
    const part = heat.querySelector("select");
    const rows = [...heat.querySelectorAll("tbody tr")].map((row) => [...row.querySelectorAll("td")]);
    const names = [...heat.querySelectorAll("tbody th")].map((name) => name.dataset.name);
    const readout = heat.querySelector(".readout");
    let chosen = null, scale = 1;

    const cosine = (value) => (value === null ? "not together" : (value / data.one).toFixed(4).replace("-", "\u2212"));
    const paint = (cell, value) => {
      cell.classList.toggle("none", value === null);
      cell.style.setProperty("--v", value === null ? 0 : Math.max(-1, Math.min(1, value / data.one / scale)));
      if (data.written) cell.textContent = value === null ? "" : (value / data.one).toFixed(2).replace("-", "\u2212");
      cell.dataset.value = cosine(value);
    };
    const tell = () => {
      if (chosen) readout.textContent = `${names[chosen[0]]} and ${names[chosen[1]]}: ${rows[chosen[0]][chosen[1]].dataset.value}`;
    };
    const show = () => {
      const step = Number(slider.value), number = part ? part.selectedIndex : 0;
      const values = data.parts[number][step];
      scale = data.scales[number];
      let at = 0;
      for (let i = 0; i < rows.length; i++) {
        for (let j = i + 1; j < rows.length; j++) {
          const value = values[at++];
          paint(rows[i][j], value);
          paint(rows[j][i], value);
        }
      }
      for (const end of heat.querySelectorAll(".scale .end")) end.textContent = scale;
      heat.querySelector(".round").textContent = data.rounds[step];
      heat.querySelector(".part").textContent = part ? part.value : data.whole;
      tell();
    };
    const choose = (event) => {
      const cell = event.target.closest("td");
      const i = rows.findIndex((row) => row.includes(cell));
      const j = i < 0 ? -1 : rows[i].indexOf(cell);
      if (j < 0 || i === j) return;
      chosen = [i, j];
      tell();
    };
    slider.addEventListener("input", show);
    if (part) part.addEventListener("change", show);
    heat.addEventListener("click", choose);
    heat.addEventListener("pointerover", choose);
    show();
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-series]");
    if (!button) return;
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", shown);
    for (const mark of button.closest(".chart").querySelectorAll(`.${button.dataset.series}`)) {
      mark.classList.toggle("off", !shown);
    }
  });
})();
