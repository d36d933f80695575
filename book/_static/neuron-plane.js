// A neuron with two inputs, moved by three sliders: the page on the
// artificial neuron. No library, no request; without JavaScript the page
// shows its figures only.
(() => {
  "use strict";
  const LOW = -0.5, HIGH = 1.5, SIZE = 240;
  const CORNERS = [[0, 0], [0, 1], [1, 0], [1, 1]];
  const GATES = {
    AND: [0, 0, 0, 1], OR: [0, 1, 1, 1], NAND: [1, 1, 1, 0], XOR: [0, 1, 1, 0],
  };
  const SLIDERS = [
    ["w1", "weight w₁", 1], ["w2", "weight w₂", -0.5], ["b", "bias b", -0.2],
  ];
  const across = (x) => ((x - LOW) / (HIGH - LOW)) * SIZE;
  const down = (y) => SIZE - across(y);
  const number = (x) => x.toFixed(1).replace("-", "−");

  const make = (parent, tag, attributes = {}, text = "") => {
    const svg = ["svg", "rect", "polygon", "line", "path", "circle", "text"];
    const element = svg.includes(tag)
      ? document.createElementNS("http://www.w3.org/2000/svg", tag)
      : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      element.setAttribute(name, value);
    }
    element.textContent = text;
    parent.append(element);
    return element;
  };

  // The part of the square where z >= 0: cut each edge where z changes sign.
  const firingRegion = (z) => {
    const square = [[LOW, LOW], [HIGH, LOW], [HIGH, HIGH], [LOW, HIGH]];
    const region = [];
    square.forEach((p, i) => {
      const q = square[(i + 1) % 4];
      const [zp, zq] = [z(p), z(q)];
      if (zp >= 0) region.push(p);
      if (zp >= 0 !== zq >= 0) {
        const t = zp / (zp - zq);
        region.push([p[0] + t * (q[0] - p[0]), p[1] + t * (q[1] - p[1])]);
      }
    });
    return region.map(([x, y]) => `${across(x)},${down(y)}`).join(" ");
  };

  const start = (root) => {
    root.textContent = "";
    const svg = make(root, "svg", {
      viewBox: `0 0 ${SIZE} ${SIZE}`, role: "img",
      "aria-label": "The plane of two inputs, divided by the neuron's cut",
    });
    make(svg, "rect", { width: SIZE, height: SIZE, fill: "#ffffff" });
    const region = make(svg, "polygon", {
      fill: "#cfe4f2", stroke: "#0072B2", "stroke-width": 1.5,
    });
    const marks = CORNERS.map(([x, y]) => {
      const ring = make(svg, "circle", {
        cx: across(x), cy: down(y), r: 15, fill: "none", "stroke-width": 3,
      });
      const dot = make(svg, "rect", {
        x: across(x) - 7, y: down(y) - 7, width: 14, height: 14,
        "stroke-width": 2,
      });
      make(svg, "text", {
        x: across(x), y: down(y) + 32, "text-anchor": "middle",
        "font-size": 13, fill: "#444444",
      }, `(${x}, ${y})`);
      return { ring, dot };
    });

    const panel = make(root, "div", { class: "neuron-plane-controls" });
    const gateLabel = make(panel, "label", {}, "find ");
    const gate = make(gateLabel, "select");
    for (const name of Object.keys(GATES)) make(gate, "option", {}, name);
    const inputs = {};
    for (const [name, title, value] of SLIDERS) {
      const label = make(panel, "label");
      const shown = make(label, "span");
      const input = make(label, "input", {
        type: "range", min: -3, max: 3, step: 0.1, value,
      });
      inputs[name] = { input, show: () => {
        shown.textContent = `${title} = ${number(+input.value)}`;
        return +input.value;
      } };
    }
    const status = make(panel, "p", { "aria-live": "polite" });

    const draw = () => {
      const [w1, w2, b] = SLIDERS.map(([name]) => inputs[name].show());
      const z = ([x, y]) => Math.round(1e6 * (w1 * x + w2 * y + b)) / 1e6;
      const wanted = GATES[gate.value];
      region.setAttribute("points", firingRegion(z));
      let right = 0;
      marks.forEach(({ ring, dot }, i) => {
        const good = (z(CORNERS[i]) >= 0) === (wanted[i] === 1);
        right += good;
        ring.setAttribute("stroke", good ? "none" : "#B04E00");
        dot.setAttribute("fill", wanted[i] ? "#0072B2" : "#ffffff");
        dot.setAttribute("stroke", wanted[i] ? "#0072B2" : "#B04E00");
        dot.setAttribute("rx", wanted[i] ? 0 : 7);
      });
      status.textContent = `${right} of 4 corners right`;
    };
    root.addEventListener("input", draw);
    draw();
  };
  document.querySelectorAll(".neuron-plane").forEach(start);
})();
