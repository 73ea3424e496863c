for (const event of document.querySelectorAll(".event")) {
  const slider = event.querySelector("input"), said = event.querySelector("output");
  const button = event.querySelector("button"), frames = event.querySelectorAll(".map img");
  const labels = JSON.parse(slider.dataset.labels);
  const show = () => {
    const k = Number(slider.value);
    for (const frame of frames) frame.style.transform = `translateY(${-100 * k / labels.length}%)`;
    said.textContent = labels[k];
    slider.setAttribute("aria-valuetext", labels[k]);
  };
  let timer = 0;
  const stop = () => { clearInterval(timer); timer = 0; button.textContent = "play"; };
  slider.addEventListener("input", () => { stop(); show(); });
  button.addEventListener("click", () => {
    if (timer) return stop();
    button.textContent = "stop";
    timer = setInterval(() => { slider.value = (Number(slider.value) + 1) % labels.length; show(); }, 600);
  });
  button.hidden = false;
  show();
}
