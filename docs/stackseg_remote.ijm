// Send the open image or stack to a served stackseg model and open the mask.
// Needs `stackseg` on the path of Fiji's own environment, or its full path in the first field.
// Plugins > Macros > Run..., or drop this file onto Fiji.
Dialog.create("Segment with stackseg");
Dialog.addString("stackseg command", "stackseg", 40);
Dialog.addString("address of the server", "http://127.0.0.1:5001", 40);
Dialog.show();
command = Dialog.getString();
address = Dialog.getString();
title = getTitle();
folder = getDirectory("temp");
image = folder + "stackseg_image.tif";
mask = folder + "stackseg_mask.tif";
saveAs("Tiff", image);
rename(title);
if (File.exists(mask)) deleted = File.delete(mask);
told = exec(command, "segment-remote", address, image, mask);
if (File.exists(mask)) {
    open(mask);
    rename("mask of " + title);
} else {
    exit("stackseg did not answer with a mask: " + told);
}
