// Who moves a control with the mouse wants Space and → for the transport again, not for that control.
//
// Controls keep the focus after a click, and Streamlit leaves keys to a focused control. So a control that was worked
// with a pointer gives its focus back. Who works it by keyboard keeps the focus, as is right.

const KEEPERS = "input[type=range], [role=radio], [role=combobox], .time-bar button";

let listening = false;

export function freeKeysAfterPointer() {
  if (listening) return;
  listening = true;
  window.addEventListener("pointerup", ({ target }) => {
    const opens = target.closest?.("[role=combobox], [data-baseweb=select], [data-testid=stSelectbox]");
    if (opens) return; // its list has just opened, and wants the focus
    setTimeout(() => {
      if (document.activeElement?.matches(KEEPERS)) document.activeElement.blur();
    }, 50); // after the control has taken the new value
  });
}
