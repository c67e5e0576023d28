// Picking behaviors, which dims all others everywhere, and pointing at sentences on the map.
(() => {
  "use strict";
  const all = (query, root = document) => [...root.querySelectorAll(query)];
  const picks = all("[data-pick]"), picked = new Set();
  const showing = document.querySelector(".showing");
  const map = document.querySelector("svg.map"), tip = document.querySelector(".tip");
  document.documentElement.classList.add("js");

  function show() {
    const titles = new Map(picks.map((pick) => [pick.dataset.pick, pick.dataset.title]));
    for (const part of all("[data-b]")) part.classList.toggle("faded", picked.size > 0 && !picked.has(part.dataset.b));
    for (const pick of picks) pick.setAttribute("aria-pressed", picked.has(pick.dataset.pick));
    showing.hidden = picked.size === 0;
    showing.firstElementChild.textContent = [...picked].map((b) => titles.get(b)).join(", ");
    point(null);
  }
  for (const pick of picks) {
    pick.disabled = false;
    pick.addEventListener("click", () => {
      const b = pick.dataset.pick;
      if (!picked.delete(b)) picked.add(b);
      show();
    });
  }
  const clear = () => { picked.clear(); show(); };
  showing.lastElementChild.addEventListener("click", clear);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") clear(); });

  const points = [];
  let current = null;
  function point(next) {
    current = next;
    if (!map) return;
    const ring = map.querySelector(".here");
    ring.setAttribute("cx", next ? next.x : -20);
    ring.setAttribute("cy", next ? next.y : -20);
    tip.hidden = !next;
    if (!next) return;
    tip.firstElementChild.textContent = next.title;
    tip.lastElementChild.textContent = next.text;
    const box = map.getBoundingClientRect(), scale = box.width / map.viewBox.baseVal.width;
    tip.style.left = `${Math.max(0, Math.min(next.x * scale + 14, box.width - tip.offsetWidth))}px`;
    const below = next.y * scale + 14;
    tip.style.top = `${below + tip.offsetHeight > box.height ? next.y * scale - tip.offsetHeight - 14 : below}px`;
  }
  if (map) {
    const visible = () => {
      // Read on first use, so that the page opens at once.
      if (!points.length) for (const path of all("path[data-b]", map)) {
        const b = path.dataset.b, said = all(`ol[data-b="${b}"] > li`);
        const title = picks.find((pick) => pick.dataset.pick === b).dataset.title;
        let index = 0;
        for (const [, x, y] of path.getAttribute("d").matchAll(/M([\d.]+) ([\d.]+)/g)) {
          points.push({ b, x: +x, y: +y, title, text: said[index++].textContent });
        }
      }
      return points.filter((p) => picked.size === 0 || picked.has(p.b));
    };
    const nearest = (some, cost, most) => some.reduce(
      (best, p) => { const c = cost(p); return c < best[1] ? [p, c] : best; }, [null, most])[0];
    map.addEventListener("pointermove", (event) => {
      const box = map.getBoundingClientRect(), scale = map.viewBox.baseVal.width / box.width;
      const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
      point(nearest(visible(), (p) => Math.hypot(p.x - x, p.y - y), 16 * Math.max(1, scale)));
    });
    map.addEventListener("pointerleave", () => point(null));
    map.addEventListener("blur", () => point(null));
    map.addEventListener("click", () => {
      if (current) { if (!picked.delete(current.b)) picked.add(current.b); show(); }
    });
    map.setAttribute("tabindex", "0");
    map.setAttribute("role", "application");
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    map.addEventListener("keydown", (event) => {
      const way = ways[event.key];
      if (!way) return;
      event.preventDefault();
      const from = current || { x: map.viewBox.baseVal.width / 2, y: map.viewBox.baseVal.height / 2 };
      const next = nearest(visible().filter((p) => p !== current), (p) => {
        const along = (p.x - from.x) * way[0] + (p.y - from.y) * way[1];
        const aside = Math.abs((p.x - from.x) * way[1]) + Math.abs((p.y - from.y) * way[0]);
        return current && along <= 0 ? Infinity : Math.abs(along) + 2 * aside;
      }, Infinity);
      if (next) point(next);
    });
  }
})();
