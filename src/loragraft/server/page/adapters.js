// The adapters of one side, each with a slider for its strength; 0 is off.

import { made } from "./markdown.js";

const MANY = 12;

// A box that hides the adapters without what is written in it; those that are on stay.
function filter(place) {
  const box = made("input", "", "filter");
  Object.assign(box, { type: "search", placeholder: "Find an adapter" });
  box.setAttribute("aria-label", "Find an adapter");
  box.addEventListener("input", () => {
    const wanted = box.value.trim().toLowerCase();
    for (const label of place.querySelectorAll("label")) {
      const on = Number(label.querySelector("input").value) > 0;
      label.hidden = !on && !label.firstChild.textContent.toLowerCase().includes(wanted);
    }
  });
  return box;
}

export class Strengths {
  // `before`: strengths by name, from a list that was shown earlier.
  constructor(place, adapters, before = new Map()) {
    this.values = new Map(adapters.map(({ name }) => [name, before.get(name) ?? 0]));
    place.replaceChildren();
    if (adapters.length > MANY) place.append(filter(place));
    if (!adapters.length) place.append(made("p", "none: start with --lora NAME=PATH", "none"));
    for (const { name } of adapters) {
      const label = place.appendChild(made("label", `${name} `));
      const shown = label.appendChild(made("output"));
      const slider = label.appendChild(made("input"));
      Object.assign(slider, { type: "range", min: 0, max: 2, step: 0.05, value: this.values.get(name) });
      const show = () => { shown.textContent = Number(slider.value).toFixed(2); };
      show();
      slider.setAttribute("aria-label", `Strength of ${name}`);
      slider.addEventListener("input", () => {
        this.values.set(name, Number(slider.value));
        show();
      });
    }
  }

  // As the field `lora` of a request.
  get lora() {
    return [...this.values].filter(([, scale]) => scale).map(([name, scale]) => ({ name, scale }));
  }

  get label() {
    return this.lora.map(({ name, scale }) => `${name} × ${scale}`).join(" + ") || "base";
  }
}
