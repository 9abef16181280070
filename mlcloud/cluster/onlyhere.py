"""Ray listens on one address of a node, not on all: `bind(2)` as its processes see it.

Ray 2.60's core binds "all interfaces" unless its node is 127.0.0.1 (https://github.com/ray-project/
ray/pull/65867 tells how), and offers no switch. What it means by that is the node's own address; so
a library of one function is put in front of libc's, by LD_PRELOAD, in the processes of Ray and in
no kernel of a session. It needs no root and no firewall, works in containers, and what `ss -ltn`
shows is then the whole truth.

The library is `onlyhere.c`, compiled for the two kinds of machine for which Ray has wheels (2 kB
each; how is said there), with the address written into it. On another kind of machine `preload`
gives nothing, and Ray's ports are guarded by its token alone.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import platform
import zlib
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "LD_PRELOAD"
NAME = "mlcloud-onlyhere.so"
_MARK = b"mlcloud-here:"
_LIBRARIES = {
    "x86_64": """
        c-p;H&1(}u6rbH}V@y-
        FX^U;KU<5xYU78S~A0XK_(G}`JiWff!n`CPO`H;;9+EayXYWEQF*uTM(Ak@@ewp0q<#FNrX5fno`)QgrLTxT{j?e36JL
        GT^sH*enO?0fTeF)?$4Wf(xn1FnN(4uBZORnB=f1~|BOfq<>s0ov0(>qgMs1Z3xR%6r^+fpH_TV^6T#2X6FXyz@oNc){
        Nj4rk}-!Eu4(tQ{d)56tjARvN_Ub@+5qDp$;aWKvPpVkwy~rDZKwDgtoO+Z3OoVq4cD@TS(qC|vn-
        F}Oo~7Ks|WmSxRK`uC7j{mC!Af=Bux&o94#n>hda%$%qnvi#B;$fB*EuRga`&hpDo;YQp*-
        %4CZStgiIapU7U@+unUlt19rO-3Bwto&GdS9xeV66-
        @yTJN@<$IXOc){#2D7VxeFI0@?C8aFHZb|mdyy$i}_Y8|y8^r$z2#-_-
        xMSWr|z{FOf0jRAX1S<{6_$s9><3l}+Ty;psmQ*$8qqb*Be;c~LC2nwbmS}C<g%=iU)18L7&2g5fZ}}6(&eS$HWbHls_
        W8GE{n{}G>QKqr+r;0Gv~dX6h4k(dN1YIjVcw7VevF+M2aeuLlXiQL`_n1!1IKlA`dMYbe<AWNXxhf{3;A@uRLP8F6;+
        v7Z1(TX>FJ5kmAI11$;D7OB1DAIk#KZ4qol%-
        O86>10zfEd%bKdmDIjF!aux`gg<^T3&_qoIf~w?Y;c;FAf~L&FRmmpjRJowo8ge0*2EwC~*3`(znhb<=sZdag+P~ks6W
        5ld>P?W;ho$BO>5m}x!BYJ|P;%6tao7{TgVfw0{Y9|9#oTbxd7R4>)i0|p@;}`o{w2qZMf8$!W2nu%BREXilX*tZwRZW
        3@fq9hKR}U>;wN!z57oy<eyI27qw<eCX1DWw?s{6^-
        $&tX%Kqpfb8eRYeuQSR{U~+bhwU%7sXs&gcW9c#_76_zpFicC(A@
    """,
    "aarch64": """
        c-
        p;HUr19?82|3hb<Qo!sh}3L$trZ|MWx_k4^Fe16_i6r3R>6g+D7}M+YS5^xQGbq#bJ;yg@J+g+Jgl_5)nOxmHE~m?T<t
        c8GFeGyPa+4=)I>6dx(B;&+nf5o!@u9`<?HcGjj0QAp^$&1%esa=mEG02MV;`L@2=RRw&Ml)tLUk6w)&g@9Ea4vvWGGB
        SF-0dYxet-3l2^*+lrnXT{HB?j|~x%R$dP;ZCeG!r!Ar6D=a~>i-
        }&(za6kXLceG$zY?#rw%>Ah#$OOITnjVy`iX2Qi9P4zyqG-iPz6fu`>L4dK6&Pda7-
        ;<Vk7LZm=!b?C1@BGPX0=wv@H44L_P*Ly$~aV6_F{hpY1VP>~V3YQQyUD}w$H_}x|u{Vvn#p^gIRGII%!8$U)v!t)Hwm
        XFBn<RRhN<@Sk_z&m|BSl<IWe@Rulo+8+n_Hh*@JP40pF1fsI8QYgpq0<40S6?qfvYLmNeki)WE8r8atk^`XPpW{vNm!
        qm7eUt@Jl_=@_gyGUE@RE4TM`}Z(CGuC<&)bXVjtF)cIa=#nni3kRV7}*Mc3F8GB|Oz=2Hmn0gmxC_j4v?ajmWmKb@LI
        -i2%U+ZP=F3stRXuLo;diy%?zaPJh4)PmLFc8ZJGc3)L*rcl|@GJuEJPw993joXg)my>mU{!3Ns*!mdq06(yU+rGsHcH
        FPT&kZ~-v+k|Mu3M(tg>7TTVe`AUuZyA8LhG@c)CJvh4>Wa>Mjz>$Nxy=yg>dEiKF?x;-
        `H1LJKYC`jGs9U{tM`S&W9CZ4u^c9=mmd$K#s}HBiVc(K5(GfUehl31f__*u}NqW8tNPO){<8MAs&b;F-
        7VDAt1#AAovF(@xgGGl^6&yIV1^vAq50Q9>A>}@b<=}u<Q-
        ^V;jB9cqtt8fp9LWWSXqVFDViTzGyfsN0fh*4+~jy15*c-
        >AD%1bC1@ImH03)bwb&#sS8e{r+%xL^NiLV<%%5VnHJR~mNur2=5oYu$ua+K&7GlLf65Jc&S8o@jGmse?0E}J-
        Y6Q0em(zr?vH%>7DnHP^ei&tO-#Ro#EyWy_w@H2V)Qf*9?hMU#yHvc<9zP<Obnl7^z_`AAbR^I`m>CFmgr~s-
        1%eU=_Pu0o#%<(mZ$zW=00YTBKqhi_4^x-gYe)
    """,
}


def preload(address: str, folder: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """The variable that makes a process listen on `address` alone, the library put into `folder`.

    Empty for a loopback address (Ray knows that one), for IPv6, and where there is no library.
    """
    given = ipaddress.ip_address(address)
    packed = _LIBRARIES.get(platform.machine())
    if given.is_loopback or given.version != 4 or packed is None or os.name != "posix":
        return {}
    library = zlib.decompress(base64.b85decode("".join(packed.split())))
    at = library.index(_MARK) + len(_MARK)
    path = folder / NAME
    temporary = path.with_name(f".{NAME}.{os.getpid()}")
    temporary.write_bytes(library[:at] + given.packed + library[at + 4 :])
    temporary.replace(path)
    return {VARIABLE: ":".join([str(path), *_others(variables)])}


def removed(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables for a process that may bind as it likes."""
    rest = {name: value for name, value in variables.items() if name != VARIABLE}
    others = _others(variables)
    return {**rest, VARIABLE: ":".join(others)} if others else rest


def _others(variables: Mapping[str, str]) -> list[str]:
    return [
        each for each in variables.get(VARIABLE, "").split(":") if each and not each.endswith(NAME)
    ]
