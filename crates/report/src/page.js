for (const slider of document.querySelectorAll("input[type=range]")) {
  const steps = slider.dataset.steps.split(" ");
  const show = () => {
    const text = "step " + steps[slider.value];
    slider.closest(".masks").style.setProperty("--frame", slider.value);
    slider.setAttribute("aria-valuetext", text);
    slider.nextElementSibling.textContent = text;
  };
  slider.addEventListener("input", show);
  show();
}
const unfold = () => {
  const run = location.hash && document.getElementById(location.hash.slice(1));
  if (run) run.open = true;
};
addEventListener("hashchange", unfold);
unfold();
