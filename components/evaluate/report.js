"use strict";
(() => {
  const gallery = document.getElementById("photographs");
  if (!gallery) return;
  const sights = [...gallery.querySelectorAll(".sight")];
  const compare = gallery.querySelector(".compare"), stage = gallery.querySelector(".stage");
  const strip = gallery.querySelector(".strip"), told = gallery.querySelector(".told");
  const [left, right, marked] = [...stage.querySelectorAll(".layer")].map((layer) => layer.appendChild(new Image()));
  const [leftName, rightName] = [...stage.querySelectorAll(".caption")];
  const canvas = stage.querySelector("canvas"), divider = document.getElementById("divider");
  const choose = Object.fromEntries(["left", "right", "zoom", "show"].map((id) => [id, document.getElementById(id)]));
  const home = sights.map((sight) => document.createComment(sight.dataset.sight));
  // The attributes, because zoom changes width and height.
  const sizes = sights.map((sight) => {
    const image = sight.querySelector(".tile img");
    return { width: Number(image.getAttribute("width")), height: Number(image.getAttribute("height")) };
  });
  const AMPLIFIED = 8;
  let at = 0, place = [0.5, 0.5];

  const tile = (name) => sights[at].querySelector(`.tile[data-name="${name}"] img`);
  const size = () => sizes[at];
  const tiles = () => [...sights[at].querySelectorAll(".tile")];
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  // Sizes in CSS pixels are whole multiples of those in the picture, so that no pixel is made up.
  function fit(width) {
    const room = gallery.clientWidth;
    return clamp(Math.floor(room / width), 1, room > 760 ? 3 : 2);
  }

  function put(element, width, height, zoom, window) {
    const offset = [width, height].map((length, i) =>
      -Math.round(clamp(place[i] * length * zoom - window[i] / 2, 0, length * zoom - window[i])));
    Object.assign(element.style, {
      width: `${width * zoom}px`, height: `${height * zoom}px`, left: `${offset[0]}px`, top: `${offset[1]}px`,
    });
  }

  function difference() {
    const { width, height } = size();
    Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingEnabled = false;
    const [a, b] = [left, right].map((image) => {
      context.drawImage(image, 0, 0, width, height);
      return context.getImageData(0, 0, width, height);
    });
    let sum = 0;
    for (let i = 0; i < a.data.length; i += 4) {
      for (let c = i; c < i + 3; c++) {
        const d = Math.abs(a.data[c] - b.data[c]);
        sum += d;
        a.data[c] = Math.min(255, AMPLIFIED * d);
      }
    }
    context.putImageData(a, 0, 0);
    told.textContent = `Mean difference ${(sum / (a.data.length * 0.75)).toFixed(2)} of 255 levels; shown ${AMPLIFIED} times as bright.`;
  }

  function slide() {
    stage.querySelector(".over").style.clipPath = `inset(0 0 0 ${divider.value}%)`;
    stage.querySelector(".divider").style.left = `${divider.value}%`;
    divider.setAttribute("aria-valuetext", `${divider.value}% ${choose.left.value}, ${100 - divider.value}% ${choose.right.value}`);
  }

  function draw() {
    const { width, height } = size();
    const zoom = Number(choose.zoom.value), base = Math.min(zoom, fit(width));
    const window = [width * base, height * base];
    stage.style.width = `${window[0]}px`;
    stage.style.height = `${window[1]}px`;
    divider.style.width = `${window[0]}px`;
    for (const image of [left, right, marked, canvas]) put(image, width, height, zoom, window);
    const small = zoom / base;
    for (const each of tiles()) {
      each.classList.toggle("zoomed", small > 1);
      Object.assign(each.style, { width: `${width}px`, height: `${height}px` });
      put(each.firstElementChild, width, height, small, [width, height]);
      each.setAttribute("aria-pressed", each.dataset.name === choose.right.value);
    }
  }

  async function change() {
    left.src = tile(choose.left.value).src;
    right.src = tile(choose.right.value).src;
    left.alt = `${sights[at].getAttribute("aria-label")}, ${choose.left.value}`;
    right.alt = `${sights[at].getAttribute("aria-label")}, ${choose.right.value}`;
    leftName.textContent = choose.left.value;
    rightName.textContent = choose.right.value;
    const show = choose.show.value, mask = sights[at].querySelector(`.mask[data-name="${show}"]`);
    marked.parentElement.hidden = !mask;
    if (mask) marked.src = mask.src;
    told.textContent = { textured: "Blue: where the original has texture.",
      artefacts: "Red: where the challenger varies out of proportion to the start." }[show] || "";
    canvas.hidden = show !== "difference";
    if (!canvas.hidden) await Promise.all([left.decode(), right.decode()]).then(difference);
    draw();
    slide();
  }

  function options(select, values, chosen) {
    select.replaceChildren(...values.map(([value, text]) => new Option(text, value, false, value === chosen)));
  }

  function zooms() {
    const base = fit(size().width);
    const values = [...new Set([1, base, 2 * base, 4 * base])].map((zoom) => [String(zoom), `${100 * zoom} %`]);
    options(choose.zoom, values, String(base));
  }

  function open(number) {
    home[at].replaceWith(sights[at]);
    at = number;
    place = [0.5, 0.5];
    sights[at].replaceWith(home[at]);
    strip.replaceChildren(sights[at]);
    for (const button of gallery.querySelectorAll(".picker button"))
      button.setAttribute("aria-pressed", button.dataset.sight === String(at));
    compare.querySelector("h3").textContent = sights[at].querySelector("h3").textContent;
    compare.querySelector(".facts").textContent = sights[at].querySelector(".facts").textContent;
    zooms();
    change();
  }

  function to(event) {
    const box = stage.getBoundingClientRect();
    divider.value = Math.round(100 * clamp((event.clientX - box.left) / box.width, 0, 1));
    slide();
  }

  const names = tiles().map((each) => each.dataset.name);
  const before = ["champion", "warm-up", "bicubic"].find((name) => names.includes(name)) || names[0];
  options(choose.left, names.map((name) => [name, name]), before);
  options(choose.right, names.map((name) => [name, name]), names.includes("challenger") ? "challenger" : names.at(-1));
  compare.hidden = false;
  gallery.classList.add("enhanced");
  open(0);

  for (const select of Object.values(choose)) select.addEventListener("change", change);
  divider.addEventListener("input", slide);
  stage.addEventListener("pointerdown", (event) => { stage.setPointerCapture(event.pointerId); to(event); });
  stage.addEventListener("pointermove", (event) => { if (stage.hasPointerCapture(event.pointerId)) to(event); });
  strip.addEventListener("pointermove", (event) => {
    const over = event.target.closest(".tile.zoomed");
    if (!over) return;
    const box = over.getBoundingClientRect();
    place = [clamp((event.clientX - box.left) / box.width, 0, 1), clamp((event.clientY - box.top) / box.height, 0, 1)];
    draw();
  });
  strip.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] }[event.key];
    if (!step || !event.target.closest(".tile.zoomed")) return;
    event.preventDefault();
    place = place.map((value, i) => clamp(value + step[i], 0, 1));
    draw();
  });
  strip.addEventListener("click", (event) => {
    const picked = event.target.closest(".tile");
    if (picked) { choose.right.value = picked.dataset.name; change(); }
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-sight]:not(.sight)");
    if (link) open(Number(link.dataset.sight));
  });
  addEventListener("resize", () => { zooms(); draw(); });
})();
