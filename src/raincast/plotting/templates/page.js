{
  // says where a table or figure goes on to the right, and shows what is folded when the page is printed
  const mark = () => {
    for (const box of document.querySelectorAll(".wide")) {
      const cut = box.scrollWidth > box.clientWidth + 1;
      box.classList.toggle("cut", cut);
      const before = box.previousElementSibling, there = before && before.classList.contains("hint");
      if (cut && !there) {
        const hint = document.createElement("p");
        hint.className = "hint";
        hint.textContent = "→ scroll sideways to see all of it";
        box.before(hint);
      } else if (!cut && there) before.remove();
    }
  };
  addEventListener("load", mark);
  addEventListener("resize", mark);
  for (const box of document.querySelectorAll("details")) box.addEventListener("toggle", mark);
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const box of opened) box.open = true;
  });
  addEventListener("afterprint", () => { for (const box of opened) box.open = false; });
}
